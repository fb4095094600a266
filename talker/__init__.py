"""Training and evaluation of the small checkpoint that ships with moshi-mesh (`checkpoints/talker`)."""
