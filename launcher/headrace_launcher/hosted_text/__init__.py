"""What runs inside Triton for a text model: copied there, so it imports nothing of headrace."""
