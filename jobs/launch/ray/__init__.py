"""Jobs on an existing Ray cluster: sent through its Jobs API, training in a placement group."""
