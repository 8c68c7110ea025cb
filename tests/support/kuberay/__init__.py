"""Kubernetes as far as jobs of KubeRay need it: a server, its checks, and jobs to render."""
