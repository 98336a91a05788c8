"""One adapter per outside thing; each imports core, ports and its one library."""
