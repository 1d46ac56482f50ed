// k6: stable users at a fixed arrival rate, and whether each of them stays on one side.
//
//   k6 run -e TARGET=http://127.0.0.1:8080 -e RATE=500 -e USERS=2000 -e DURATION=30s stable-users.js
//
// A virtual user of k6 remembers only for itself, so each owns a slice of the users: user n belongs to virtual user n % VUS + 1, and every check compares with what the same
// virtual user has seen before. Moves of the split show as failed checks: use this where nothing moves, or read the count against what was moved.

import http from 'k6/http';
import exec from 'k6/execution';
import { check } from 'k6';
import { Counter } from 'k6/metrics';

const target = __ENV.TARGET || 'http://127.0.0.1:8080';
const rate = Number(__ENV.RATE || 500);
const users = Number(__ENV.USERS || 2000);
const vus = Number(__ENV.VUS || 64);
const header = __ENV.SIDE_HEADER || 'x-served-by';

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: vus,
      maxVUs: vus,
    },
  },
  thresholds: {
    'checks{check:sticky}': ['rate==1'],
    http_req_failed: ['rate==0'],
    dropped_iterations: ['count==0'],
  },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
};

const switches = new Counter('switches');
const sides = new Counter('answers');
const seen = new Map();

export default function () {
  const slice = Math.max(1, Math.floor(users / vus));
  const user = `user-${Math.floor(Math.random() * slice) * vus + ((exec.vu.idInTest - 1) % vus)}`;
  const response = http.get(`${target}/`, { headers: { 'x-user-id': user } });
  const side = response.headers[Object.keys(response.headers).find((name) => name.toLowerCase() === header)];
  sides.add(1, { side: side || 'none' });
  const before = seen.get(user);
  check(response, { sticky: () => side === undefined || before === undefined || before === side }, { check: 'sticky' });
  if (side !== undefined) {
    if (before !== undefined && before !== side) switches.add(1);
    seen.set(user, side);
  }
}
