"""What a person can set: one record a topic, its checks, and its flags."""
