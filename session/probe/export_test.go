package probe

// Connections is how many X servers are connected to.
func Connections() int {
	watchers.Lock()
	defer watchers.Unlock()
	return len(watchers.m)
}
