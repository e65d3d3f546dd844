// Keeps a desktop connected: asks the gateway how the session is, connects noVNC, and starts over when the connection
// breaks, ever more slowly. What is going on is told by "state" events:
//
//   connecting   a connection is being made
//   connected    the desktop is shown
//   waiting      broke or not reachable; detail.seconds until the next try, detail.text says why
//   starting     the session exists but is not ready
//   failed       the session exists but a required component of it failed
//   ended        there is no such session (any more); watched for in case it comes back
//   login        the gateway wants a token
import RFB from '@novnc/novnc';
import * as api from './api.js';

const delays = [0.5, 1, 2, 4, 8, 15]; // seconds, then the last one for ever
const stable = 5000; // ms that a connection has to last for the delays to begin anew
const watchEvery = 3; // seconds, while the session is starting or gone

export class Connection extends EventTarget {
    constructor(name, target) {
        super();
        this.name = name;
        this.target = target;
        this.rfb = null;
        this.tries = 0;
        this.generation = 0; // of the current attempt: answers to older ones are ignored
        this.wasShown = false;
        // When the network is back or the tab is looked at again, nobody wants to wait.
        addEventListener('online', () => this.hurry());
        document.addEventListener('visibilitychange', () => document.hidden || this.hurry());
    }

    tell(state, detail = {}) {
        this.state = state;
        this.dispatchEvent(new CustomEvent('state', { detail: { state, ...detail } }));
    }

    // hurry makes the next try at once if one is being waited for.
    hurry() {
        if (this.timer) {
            this.connect();
        }
    }

    later(seconds) {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.connect(), seconds * 1000);
    }

    async connect() {
        clearTimeout(this.timer);
        this.timer = null;
        const generation = ++this.generation;
        if (this.state !== 'ended' && this.state !== 'starting' && this.state !== 'failed') {
            this.tell('connecting', { again: this.wasShown });
        }
        let session;
        try {
            session = await api.session(this.name);
        } catch (err) {
            if (generation !== this.generation) {
                return;
            }
            switch (err.status) {
            case 401:
                return this.tell('login');
            case 404:
                this.tell('ended', { wasShown: this.wasShown });
                return this.later(watchEvery);
            case 429:
                return this.wait(err.message);
            default:
                return this.wait(err.status ? err.message : 'The gateway cannot be reached.');
            }
        }
        if (generation !== this.generation) {
            return;
        }
        this.session = session;
        if (session.state === 'starting' || session.state === 'failed' || session.state === 'stopping') {
            this.tell(session.state === 'stopping' ? 'ended' : session.state, { wasShown: this.wasShown });
            return this.later(watchEvery);
        }
        this.open(generation);
    }

    open(generation) {
        const rfb = new RFB(this.target, api.socketURL(this.name), { shared: true, wsProtocols: ['binary'] });
        rfb.addEventListener('connect', () => {
            this.rfb = rfb;
            this.since = performance.now();
            this.wasShown = true;
            this.tell('connected');
        });
        rfb.addEventListener('disconnect', () => {
            if (this.rfb === rfb) {
                this.rfb = null;
            }
            if (generation !== this.generation) {
                return;
            }
            // Ask the gateway first: the session may have ended, which is not worth waiting and trying again for.
            if (this.state === 'connected' && performance.now() - this.since > stable) {
                this.tries = 0;
                this.connect();
            } else {
                this.wait('The desktop does not answer.');
            }
        });
        rfb.addEventListener('securityfailure', (event) => {
            this.reason = event.detail.reason;
        });
        this.dispatchEvent(new CustomEvent('rfb', { detail: rfb }));
    }

    wait(text) {
        const base = delays[Math.min(this.tries++, delays.length - 1)];
        const seconds = base * (0.8 + 0.4 * Math.random()); // many tabs do not all come at the same moment
        this.tell('waiting', { seconds, text: this.reason ?? text });
        this.reason = undefined;
        this.later(seconds);
    }
}
