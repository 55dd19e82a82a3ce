"""Who is told what over streams: frontends that follow, executors that lease, clients that watch."""
