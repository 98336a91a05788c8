"""Where OpenLineage events go: a file of lines, or a server."""
