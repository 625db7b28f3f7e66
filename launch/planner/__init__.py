"""What a pretraining run would need: memory, time, data rate, energy (`python -m launch.plan`)."""
