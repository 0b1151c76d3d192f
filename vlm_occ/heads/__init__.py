"""Small networks that decode states and features into occupancy, boxes and situations."""
