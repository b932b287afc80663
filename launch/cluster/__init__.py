"""Past one machine: dealers, and replicas of a deployment, as actors of a Ray cluster."""
