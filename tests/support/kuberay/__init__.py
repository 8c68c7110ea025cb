"""The parts of Kubernetes that KubeRay jobs need: a server, its checks, and jobs to render."""
