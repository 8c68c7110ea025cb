"""Where ranks come from: Ray clusters, Ray Train, or this very process. The room of Ray."""
