"""The web application: what listens for HTTP, and which errors become which answers."""
