"""ExpertMesh on Kubernetes: the application that a RayService names, and manifests for a model."""
