"""What `lorikeet bench serve` is made of: requests are planned, sent and measured, then summed up."""
