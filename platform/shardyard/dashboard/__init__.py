"""The dashboard: run folders and jobs in one page, served to this machine alone unless asked otherwise."""
