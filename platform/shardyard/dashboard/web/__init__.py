"""The application: routes, security, and the answers of each route."""
