"""Contracts for the ports, clocks and factories, shipped so that a plug-in can prove itself."""
