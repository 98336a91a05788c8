"""Pure types and decisions: ids, time, schema, events, state machines."""
