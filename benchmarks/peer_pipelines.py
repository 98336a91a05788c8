"""What a step costs other products: a chain and a fan of steps that add one, first and again.

Runs in the environment of a peer: `peer_pipelines.py PEER SHAPE STEPS FOLDER TURNS` prints a JSON
object with seconds for one more step, a figure a turn (`first`, and `again` where the product has
a cache or a resume), and all answers. One more step is a run of STEPS less a run of one, so that
start and end do not count. Each product has its own cache or persistence switched on, as its
documentation shows it.
"""

import json
import os
import subprocess
import sys
import time

os.environ["PYTHONWARNINGS"] = "ignore"


class InProcess:
    """Runs a function `flow(start, steps)` of this process."""

    has_cache = True

    def run(self, start, steps):
        began = time.perf_counter()
        answer = self.flow(start, steps)
        return time.perf_counter() - began, answer


class Joblib(InProcess):
    def __init__(self, shape, folder):
        import joblib

        memory = joblib.Memory(folder, verbose=0)
        increase = memory.cache(_increase)
        self.flow = _plain(shape, increase)


class Hamilton(InProcess):
    """A graph of functions made for each length, as nodes have names; its cache is a folder."""

    def __init__(self, shape, folder):
        from hamilton import driver

        self._driver, self._folder, self._shape = driver, folder, shape

    def flow(self, start, steps):
        from hamilton import ad_hoc_utils

        text = [f"def v0() -> int:\n    return {start}\n"]
        for n in range(1, steps + 1):
            source = f"v{n - 1}" if self._shape == "chain" else "v0"
            text.append(f"def v{n}({source}: int) -> int:\n    return {source} + {self._plus(n)}\n")
        module = ad_hoc_utils.module_from_source("\n".join(text))
        built = self._driver.Builder().with_modules(module).with_cache(path=self._folder).build()
        wanted = [f"v{steps}"] if self._shape == "chain" else [f"v{n}" for n in range(1, steps + 1)]
        found = built.execute(wanted)
        return sum(int(value) for value in found.values())

    def _plus(self, n):
        return 1 if self._shape == "chain" else n


class Prefect(InProcess):
    def __init__(self, shape, folder):
        os.environ["PREFECT_HOME"] = folder
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "240"
        import prefect
        from prefect.cache_policies import INPUTS, TASK_SOURCE

        increase = prefect.task(_increase, cache_policy=INPUTS + TASK_SOURCE, persist_result=True)
        self.flow = prefect.flow(_plain(shape, increase))


class Dagster(InProcess):
    """Nothing is skipped when it runs again, so there is no second figure."""

    has_cache = False

    def __init__(self, shape, folder):
        os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
        from dagster import DagsterInstance, Out, graph, op

        self._instance = DagsterInstance.local_temp(folder)

        def make(steps):
            @op(config_schema={"start": int}, out=Out(int))
            def begin(context):
                return context.op_config["start"]

            adders = [
                op(name=f"s{n}", out=Out(int))(_adder(1 if shape == "chain" else n))
                for n in range(1, steps + 1)
            ]

            @op(out=Out(int))
            def total(values: list[int]):
                return sum(values)

            @graph
            def whole():
                value = begin()
                if shape != "chain":
                    return total([adder(value) for adder in adders])
                for adder in adders:
                    value = adder(value)
                return value

            return whole.to_job(name=f"whole{steps}")

        self._make, self._jobs = make, {}

    def run(self, start, steps):
        job = self._jobs.setdefault(steps, self._make(steps))
        config = {"ops": {"begin": {"config": {"start": start}}}}
        began = time.perf_counter()
        done = job.execute_in_process(run_config=config, instance=self._instance)
        return time.perf_counter() - began, done.output_value()


class Dbos(InProcess):
    """A run with the id of an earlier one is answered as a whole, by one look-up."""

    has_cache = False

    def __init__(self, shape, folder):
        from dbos import DBOS

        url = f"sqlite:///{folder}/dbos.sqlite"
        DBOS(config={"name": "bench", "system_database_url": url, "log_level": "CRITICAL"})
        increase = DBOS.step()(_increase)
        self.flow = DBOS.workflow()(_plain(shape, increase))
        DBOS.launch()


class Flyte(InProcess):
    """Tasks have to stand in a module."""

    def __init__(self, shape, folder):
        os.environ["FLYTE_LOCAL_CACHE_ENABLED"] = "true"
        os.environ["HOME"] = folder
        with open(os.path.join(folder, "flyte_steps.py"), "w") as file:
            file.write(_FLYTE)
        sys.path.insert(0, folder)
        import flyte_steps

        self._flow = getattr(flyte_steps, shape)

    def flow(self, start, steps):
        found = self._flow(start=start, steps=steps)
        return sum(found) if isinstance(found, list) else found


_FLYTE = """
from flytekit import dynamic, task

@task(cache=True, cache_version="1")
def increase(x: int) -> int:
    return x + 1

@dynamic
def chain(start: int, steps: int) -> int:
    value = start
    for _ in range(steps):
        value = increase(x=value)
    return value

@dynamic
def fan(start: int, steps: int) -> list[int]:
    return [increase(x=start + n) for n in range(steps)]
"""


class Zenml(InProcess):
    def __init__(self, shape, folder):
        os.environ["ZENML_CONFIG_PATH"] = folder
        os.environ["ZENML_ANALYTICS_OPT_IN"] = "false"
        os.environ["ZENML_LOGGING_VERBOSITY"] = "CRITICAL"
        os.environ["ZENML_ENABLE_RICH_TRACEBACK"] = "false"
        os.environ["AUTO_OPEN_DASHBOARD"] = "false"
        os.chdir(folder)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=False)
        import zenml

        increase = zenml.step(_increase)

        @zenml.pipeline(enable_cache=True)
        def flow(start: int, steps: int):
            value = start
            for n in range(steps):
                value = increase(value) if shape == "chain" else increase(start + n)

        self._flow, self._is_chain = flow, shape == "chain"

    def run(self, start, steps):
        began = time.perf_counter()
        done = self._flow(start, steps)
        seconds = time.perf_counter() - began
        values = [step.outputs["output"][0].load() for step in done.steps.values()]
        return seconds, max(values) if self._is_chain else sum(values)


class Dvc:
    """A stage of one shell command a step; `dvc repro` again looks at all of them."""

    has_cache = True

    def __init__(self, shape, folder):
        self._shape, self._folder = shape, folder

    def run(self, start, steps):
        home = os.path.join(self._folder, f"{start}-{steps}")
        if not os.path.exists(home):
            os.makedirs(home)
            self._dvc(home, "init", "--no-scm", "-q")
            stages = []
            for n in range(1, steps + 1):
                source = f"v{n - 1}" if self._shape == "chain" else "v0"
                plus = 1 if self._shape == "chain" else n
                stages.append(
                    f"  s{n}:\n    cmd: echo $(( $(cat {source}) + {plus} )) > v{n}\n"
                    f"    deps: [{source}]\n    outs: [v{n}]\n"
                )
            with open(os.path.join(home, "dvc.yaml"), "w") as file:
                file.write("stages:\n" + "".join(stages))
            with open(os.path.join(home, "v0"), "w") as file:
                file.write(str(start))
        began = time.perf_counter()
        self._dvc(home, "repro", "-q")
        seconds = time.perf_counter() - began
        names = [f"v{steps}"] if self._shape == "chain" else [f"v{n}" for n in range(1, steps + 1)]
        return seconds, sum(int(open(os.path.join(home, name)).read()) for name in names)

    def _dvc(self, home, *args):
        env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        command = [os.path.join(os.path.dirname(sys.executable), "dvc"), *args]
        subprocess.run(command, cwd=home, env=env, check=True, capture_output=True)


class Metaflow:
    """A process a step; again is `resume` of the last step, which clones the others."""

    has_cache = True

    def __init__(self, shape, folder):
        self._shape, self._folder, self._done = shape, folder, set()

    def run(self, start, steps):
        home = os.path.join(self._folder, f"{start}-{steps}")
        again = home in self._done
        self._done.add(home)
        os.makedirs(home, exist_ok=True)
        script = os.path.join(home, "flow.py")
        with open(script, "w") as file:
            file.write(_metaflow_source(self._shape, start, steps))
        env = {**os.environ, "METAFLOW_USER": "bench", "USERNAME": "bench", "HOME": home}
        args = ["resume", "end"] if again else ["run"]
        limit = ["--max-num-splits", "100000", "--max-workers", "2"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, script, "--no-pylint", "--quiet", *args, *limit],
            cwd=home,
            env=env,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stderr or done.stdout)
        return seconds, int(open(os.path.join(home, "answer")).read())


def _metaflow_source(shape, start, steps):
    lines = ["from metaflow import FlowSpec, step", "class Flow(FlowSpec):"]
    if shape == "chain":
        lines += ["    @step", "    def start(self):", f"        self.v = {start}"]
        lines += ["        self.next(self.s1)"]
        for n in range(1, steps + 1):
            after = f"s{n + 1}" if n < steps else "end"
            lines += ["    @step", f"    def s{n}(self):", "        self.v += 1"]
            lines += [f"        self.next(self.{after})"]
    else:
        lines += ["    @step", "    def start(self):"]
        lines += [f"        self.items = list(range({start}, {start + steps}))"]
        lines += ["        self.next(self.each, foreach='items')"]
        lines += ["    @step", "    def each(self):", "        self.v = self.input + 1"]
        lines += ["        self.next(self.join)"]
        lines += ["    @step", "    def join(self, inputs):"]
        lines += ["        self.v = sum(i.v for i in inputs)", "        self.next(self.end)"]
    lines += ["    @step", "    def end(self):", "        open('answer', 'w').write(str(self.v))"]
    lines += ["if __name__ == '__main__':", "    Flow()"]
    return "\n".join(lines) + "\n"


def _increase(x: int) -> int:
    return x + 1


def _adder(n):
    def add(x: int):
        return x + n

    return add


def _plain(shape, increase):
    def chain(start: int, steps: int) -> int:
        value = start
        for _ in range(steps):
            value = increase(value)
        return value

    def fan(start: int, steps: int) -> int:
        return sum(increase(start + n) for n in range(steps))

    return chain if shape == "chain" else fan


PEERS = {
    "joblib": Joblib,
    "hamilton": Hamilton,
    "prefect": Prefect,
    "dagster": Dagster,
    "dbos": Dbos,
    "flytekit": Flyte,
    "zenml": Zenml,
    "dvc": Dvc,
    "metaflow": Metaflow,
}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed must not meet the answer
    name, shape, steps, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    peer = PEERS[name](shape, folder)
    peer.run(0, 1)  # what happens once in a process or a folder
    said = {"first": [], "again": [], "answers": []}
    for turn in range(1, int(sys.argv[5]) + 1):
        for kind in ("first", "again") if peer.has_cache else ("first",):
            short, _ = peer.run(10_000 * turn, 1)
            whole, answer = peer.run(10_000 * turn + 1, steps)
            said[kind].append((whole - short) / (steps - 1))
            said["answers"].append(answer)
    answers.write(json.dumps(said) + "\n")
    answers.flush()
    os._exit(0)  # some leave threads behind that would keep the process


if __name__ == "__main__":
    main()
