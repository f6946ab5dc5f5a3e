"""The HTTP surface of engines: wire format, server and client."""
