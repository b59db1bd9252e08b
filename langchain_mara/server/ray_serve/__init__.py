"""Several processes that answer: replicas of the app, which Ray Serve runs, and the process in front of them."""
