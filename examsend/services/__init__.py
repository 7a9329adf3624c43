"""What a port serves: the services, each for the requests of some SOP Classes, and the process that accepts associations."""
