"""The services as processes: planned from the settings, started, watched, started again, stopped."""
