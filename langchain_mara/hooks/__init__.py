"""Accept/reject decoding inside other libraries."""
