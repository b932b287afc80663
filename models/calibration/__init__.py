"""Calibration: a checkpoint's largest values on a text, by kind and layer, and the public bounds that are chosen by them."""
