"""What trains the generators that methods draw samples from, one file each."""
