"""The same loop around aiohttp, on uvloop."""

import uvloop
from raw_aiohttp import main
from work import Work

uvloop.run(main(Work.given()))
