"""The identity of a job: everything that its results depend on."""
