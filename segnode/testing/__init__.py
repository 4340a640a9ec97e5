"""What tests and the demonstration need, shipped for those who test against segnode: phantoms and starters of real peers."""
