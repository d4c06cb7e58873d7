"""The Docker Engine API, served to stock clients over a unix socket (and TLS).

Import `manager.httpapi.server` for the server and `manager.httpapi.backend` for what it needs of
the daemon; this module imports nothing, so that `import manager.httpapi` stays free of cost.
"""
