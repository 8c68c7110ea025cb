"""The application: routes, security, and what each page is answered with."""
