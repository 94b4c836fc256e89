"""The ground floor: faults, files that are never half written, progress, devices. Imports no other room."""
