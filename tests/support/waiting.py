"""How long tests wait for what must come. Only what never comes takes so long, on however busy a machine."""

WAIT_SECONDS = 60.0
