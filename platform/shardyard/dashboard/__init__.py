"""The dashboard: a web page of run folders and jobs, by default served only on this machine."""
