"""What the gateway's stress scripts share: a provider that tells what it sees, and clients that do not behave."""
