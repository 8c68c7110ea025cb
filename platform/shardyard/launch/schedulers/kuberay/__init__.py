"""KubeRay: RayJobs on Kubernetes."""
