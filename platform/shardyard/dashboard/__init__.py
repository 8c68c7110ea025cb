"""The dashboard: a web page of run folders and jobs, served on this machine only by default."""
