#!/usr/bin/env python3
"""Targets for vegeta: requests of stable users, one JSON object for each line.

    python3 vegeta-targets.py --target http://127.0.0.1:8080 --users 2000 --requests 20000 > targets.json
    vegeta attack -format=json -targets=targets.json -rate=500 -duration=30s | vegeta encode --to json > results.json
    python3 vegeta-targets.py --check results.json

vegeta keeps the headers of each answer in its JSON, and the target's URL: the user is in its query (?user=user-7), beside the header that the proxy routes by.
"""
import argparse
import collections
import json
import random
import sys
import urllib.parse


def write(options):
    draw = random.Random(options.seed)
    for _ in range(options.requests):
        user = f"user-{draw.randrange(options.users)}"
        print(json.dumps({"method": "GET", "url": f"{options.target}/?user={user}", "header": {"X-User-Id": [user]}}))


def check(path, side_header):
    """Users in the order of their requests: who was on which side, and who on both?"""
    answers = collections.defaultdict(list)
    failed = 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            result = json.loads(line)
            failed += result["code"] == 0 or result["code"] >= 500
            headers = {name.lower(): values for name, values in (result.get("headers") or {}).items()}
            side = headers.get(side_header, [None])[0]
            user = urllib.parse.parse_qs(urllib.parse.urlsplit(result["url"]).query)["user"][0]
            if side:
                answers[user].append((result["timestamp"], side))
    moved = {user for user, seen in answers.items() if len({side for _, side in seen}) > 1}
    on_new = sum(1 for seen in answers.values() if max(seen)[1] == "new")
    print(f"{len(answers)} users, {on_new} of them on new at the end, {len(moved)} on both sides, {failed} requests failed")
    sys.exit(1 if moved or failed else 0)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--target", default="http://127.0.0.1:8080")
    arguments.add_argument("--users", type=int, default=2000)
    arguments.add_argument("--requests", type=int, default=20000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--side-header", default="x-served-by")
    arguments.add_argument("--check", metavar="RESULTS", help="judge the results of an attack instead of writing targets")
    options = arguments.parse_args()
    if options.check:
        check(options.check, options.side_header.lower())
    else:
        write(options)


if __name__ == "__main__":
    main()
