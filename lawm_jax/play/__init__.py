"""Play: a page in which a person drives the world that a trained model imagines."""
