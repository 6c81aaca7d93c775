"""A recipe followed in a dry run."""

from __future__ import annotations

from lilliput.engine.begin import check_changed, check_followed, stepped
from lilliput.engine.plan import Plan
from lilliput.engine.run import Driver
from lilliput.recipe import Recipe
from lilliput.techniques.run import Undecided


def planned(recipe: Recipe, driver: Driver) -> Plan:
    """Let `driver` stand as the recipe would leave it, as far as that is known without doing it."""
    check_followed(recipe, driver)
    driver.plan = plan = Plan()
    for i, step in enumerate(stepped(recipe, driver)):
        plan.step = f"step {i + 1}, {type(step).__name__}"
        try:
            step.apply(driver)
        except Undecided as why:
            plan.undecided[plan.step] = str(why)
            plan.takes_more()
    if not plan.undecided:
        check_changed(driver)
    return plan
