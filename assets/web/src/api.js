// The gateway's API. All addresses are relative to where this script was loaded from, so the page also works below a
// path of a reverse proxy.
export const base = new URL('..', import.meta.url);

export class APIError extends Error {
    constructor(status, doc) {
        super(doc?.message ?? `the gateway answered ${status}`);
        this.status = status;
        this.hint = doc?.hint;
    }
}

async function check(response) {
    if (response.ok || response.status === 304) {
        return response;
    }
    let doc;
    try {
        doc = await response.json();
    } catch {
        // Not from the gateway but from something between: the status has to do.
    }
    throw new APIError(response.status, doc);
}

export async function get(path, options = {}) {
    return check(await fetch(new URL(path, base), { cache: 'no-cache', ...options }));
}

export async function post(path, body, options = {}) {
    return check(await fetch(new URL(path, base), {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body ?? {}),
        ...options,
    }));
}

export const session = async (name) => (await get(`api/sessions/${encodeURIComponent(name)}`)).json();
export const sessions = async () => (await get('api/sessions')).json();
export const login = async (token) => (await post('login', { token })).json();

export function desktopURL(name) {
    return new URL(`s/${encodeURIComponent(name)}/`, base);
}

export function socketURL(name) {
    const url = new URL(`ws/${encodeURIComponent(name)}`, base);
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    return url.href;
}

// takeToken returns the token in the address, if any, and removes it from there and from the history.
export function takeToken() {
    const token = new URLSearchParams(location.hash.slice(1)).get('token');
    if (token) {
        history.replaceState(history.state, '', location.pathname + location.search);
    }
    return token;
}
