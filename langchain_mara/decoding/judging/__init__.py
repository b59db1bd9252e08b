"""What agents say of candidates: before these go through the model, or after."""
