"""Reports from results of `mpcache bench`: tables, plots, a page, and what pages quote."""
