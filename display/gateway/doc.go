// Package gateway is the only part of Berth that listens on the network: it lets people see and use the desktops of
// sessions from a VNC viewer or a browser. It lives inside the daemon and listens on loopback unless told otherwise.
//
// # What it serves
//
//   - VNC: one TCP listener per session (OpenVNC). The gateway authenticates the viewer with the session's password
//     (RFC 6143 section 7.2.2), connects to the session's VNC server on its Unix socket, which has no authentication of
//     its own, and from then on moves bytes.
//   - HTTP(S): one listener for all sessions (Listen): a list with live thumbnails, the desktop page with noVNC, a small
//     JSON API and a WebSocket per desktop.
//
// What the gateway knows of sessions comes through the Sessions interface, which the session manager implements. It
// asks anew for every request and keeps nothing, so a session that ended is gone at once.
//
// # Who may see what
//
// Every session has a token, the gateway as a whole an admin token. The URL printed by `berth up` carries the token in
// its fragment, which browsers send to nobody; the page posts it to /login and gets a cookie (HttpOnly,
// SameSite=Strict) that names a login, a record on the gateway's side of the sessions it has shown tokens for. What a
// login may not see does not exist for it (404). A session that is started again under an old name has a new ID, so old
// logins do not carry over. Scripts send `Authorization: Bearer TOKEN` instead.
//
// # What it defends against
//
//   - Password guessing: wrong VNC passwords and tokens are throttled per address, compared in constant time.
//   - DNS rebinding: a Host header that is a DNS name must be localhost or configured (hostAllowed).
//   - Cross-site requests: Origin is checked on every POST and WebSocket; no page may frame ours.
//   - A session's user who replaces the VNC socket in the runtime directory by a link to someone else's: the socket's
//     owner must be the session's user (SO_PEERCRED), or nothing is exchanged with it.
//   - Peers that vanish or dawdle: handshakes have deadlines, connections keepalives, and their number is limited.
package gateway
