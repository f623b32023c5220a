"""Memory, time, speed, and the machine they are measured on."""
