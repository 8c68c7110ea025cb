"""The application: routes, security, and the handlers of each route."""
