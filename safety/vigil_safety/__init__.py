"""Safety state machine of Vigil."""
