"""What `mpcache init` writes: one folder for each role of a deployment, and one for its authority."""
