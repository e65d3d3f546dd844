// Package session turns plans into running sessions and keeps them running.
//
// # Model
//
// A Manager owns all sessions of one daemon. A session is a pod of the engine with one container per component of its
// plan, and a directory of wires on the host (sockets, cookie, runtime directory) that every container sees at the
// same places. The pod carries the session's record (plan, user, secrets, ports) as its data: the engine is the only
// database. A daemon that starts finds the pods, reads the records, and goes on supervising; one that is killed
// leaves every session running.
//
// # Start
//
// Up reserves a name, then does three things at once: the images are made present, the wires are laid, the pod is
// created. As soon as all three are there the containers are created, those that much waits for first, and each
// program starts the moment the components in its After are ready. Ready is what its probes say. Every step adds its
// undo to a stack, so that an error or a cancelled context leaves nothing.
//
// # Supervision
//
// One goroutine per component walks waiting -> starting -> ready -> (exit) -> backoff -> waiting. The engine's exit
// events reach it through the session. What to do about an exit is decided by the pure function decide. When the
// plan's session component exits cleanly the user has logged out, and the session is taken down, dependents first. So it
// is when a component with EndsSession does: the one that a desktop asks to power off (package session/systembus) has no
// other way to tell, and needs none. A crash of either is restarted like any other.
//
// # Locks
//
// Manager.mu guards the map of sessions; session.mu guards one session's state. session.mu may be taken with
// Manager.mu held, never the other way round. No lock is held across a call to the engine.
package session
