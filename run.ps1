#!/usr/bin/env pwsh
#Requires -Version 7.2

<#
.SYNOPSIS
Shows that no request fails while a target is away.

.DESCRIPTION
Starts the proxy and five targets with Docker Compose, sends requests with the spamer, stops one
target, starts it again, and ends everything. The exit code is that of the spamer: 0 if no request
failed. Nothing but PowerShell 7 and Docker is needed; with -Local, PowerShell 7 and Python.

.PARAMETER StopAfter
Seconds of requests before the target is stopped.

.PARAMETER StartAfter
Seconds that the target is away.

.PARAMETER EndAfter
Seconds of requests after the target has been started again.

.PARAMETER Interval
Seconds between two requests.

.PARAMETER Target
The number of the target to stop, 1 to 5.

.PARAMETER Local
Without Docker: targets on ports 8001 to 8005, the proxy on port 8000 as appsettings.json says.

.PARAMETER KeepRunning
Leave the proxy and the targets running.

.EXAMPLE
./run.ps1 -StopAfter 10 -StartAfter 10 -EndAfter 10

.EXAMPLE
pwsh run.ps1 -Local -KeepRunning
#>
[CmdletBinding()]
param(
    [ValidateRange(0.0, 100000.0)] [double] $StopAfter = 100,
    [ValidateRange(0.0, 100000.0)] [double] $StartAfter = 100,
    [ValidateRange(0.0, 100000.0)] [double] $EndAfter = 100,
    [ValidateRange(0.001, 3600.0)] [double] $Interval = 0.2,
    [ValidateRange(1, 5)] [int] $Target = 3,
    [switch] $Local,
    [switch] $KeepRunning
)

$ErrorActionPreference = 'Stop'
$PSNativeCommandUseErrorActionPreference = $false    # exit codes are looked at here
$url = 'http://127.0.0.1:8000/'    # not localhost, where Windows first waits for IPv6
$servers = @{}    # port -> process, with -Local
$spamer = $null
$started = $false
$code = 1

function Test-Command([string] $Name) {
    [bool] (Get-Command $Name -CommandType Application -ErrorAction Ignore)
}

function Start-Program([string] $File, [string[]] $Arguments) {
    $info = [System.Diagnostics.ProcessStartInfo]::new($File)
    foreach ($argument in $Arguments) { $info.ArgumentList.Add($argument) }
    $info.WorkingDirectory = $PSScriptRoot
    $info.Environment['PYTHONUNBUFFERED'] = '1'
    [System.Diagnostics.Process]::Start($info)
}

function Stop-Program([System.Diagnostics.Process] $Process) {
    if ($Process -and -not $Process.HasExited) {
        $Process.Kill($true)    # with its children: a virtual environment's python.exe has one
        $Process.WaitForExit()
    }
}

function Invoke-Docker {
    docker @args
    if ($LASTEXITCODE -ne 0) { throw "'docker $args' ended with exit code $LASTEXITCODE" }
}

# The name of the project, with which the names of its containers begin
function Find-Docker {
    if (-not (Test-Command 'docker')) { throw 'docker is not on PATH: install Docker, or use -Local' }
    docker compose version *> $null
    if ($LASTEXITCODE -ne 0) { throw "'docker compose' is missing: install its plugin, or use -Local" }
    docker info *> $null
    if ($LASTEXITCODE -ne 0) { throw 'no Docker engine answers: start it, or use -Local' }
    (Invoke-Docker compose config --format json | ConvertFrom-Json).name
}

function Find-Python {
    foreach ($name in 'python', 'python3', 'py') {
        if (Test-Command $name) {
            $path = & $name -c 'import sys, pyproxy.cli; print(sys.executable)' 2> $null
            if ($LASTEXITCODE -eq 0) { return $path }
        }
    }
    throw "no Python on PATH can run pyproxy: install Python and 'pip install .', or run without -Local"
}

# Not by connecting: Windows takes two seconds to refuse a connection
function Test-Port([int] $Port) {
    $Port -in [System.Net.NetworkInformation.IPGlobalProperties]::GetIPGlobalProperties().GetActiveTcpListeners().Port
}

function Start-Server([int] $Port, [string[]] $Arguments = @()) {
    if (Test-Port $Port) { throw "port $Port is taken by another program" }
    $command = @('-m', 'pyproxy') + $Arguments
    $process = Start-Program $python $command
    $servers[$Port] = $process
    for ($i = 0; $i -lt 200 -and -not $process.HasExited; $i++) {
        if (Test-Port $Port) { return }
        Start-Sleep -Milliseconds 100
    }
    throw "'python $command' does not listen on port $Port"
}

function Start-Target([int] $Number) {
    if ($Local) { Start-Server (8000 + $Number) 'target', '--port', (8000 + $Number), '--name', "target$Number" }
    else { Invoke-Docker start "$project-target-$Number" }
}

function Stop-Target([int] $Number) {
    if ($Local) { Stop-Program $servers[8000 + $Number] }
    else { Invoke-Docker stop "$project-target-$Number" }
}

# In small steps, because Ctrl+C can't interrupt a single long wait for a process
function Wait-Spamer([double] $Until) {
    while ($clock.Elapsed.TotalSeconds -lt $Until) {
        if ($spamer.HasExited) { throw "the spamer ended early, with exit code $($spamer.ExitCode)" }
        Start-Sleep -Milliseconds 100
    }
}

Push-Location -LiteralPath $PSScriptRoot
try {
    if ($Local) { $python = Find-Python } else { $project = Find-Docker }

    Write-Host 'Starting five targets and the proxy'
    $started = $true
    if ($Local) {
        foreach ($number in 1..5) { Start-Target $number }
        Start-Server 8000
    }
    else { Invoke-Docker compose up --build --wait }

    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $spam = '-m', 'pyproxy', 'spam', $url, '--interval', "$Interval", '--duration', "$($StopAfter + $StartAfter + $EndAfter)"
    if ($Local) { $spamer = Start-Program $python $spam }
    else { $spamer = Start-Program 'docker' (@('compose', 'exec', '-T', 'proxy', 'python') + $spam) }

    Wait-Spamer $StopAfter
    Write-Host "Stopping target$Target"
    Stop-Target $Target

    Wait-Spamer ($StopAfter + $StartAfter)
    Write-Host "Starting target$Target"
    Start-Target $Target

    while (-not $spamer.HasExited) { Start-Sleep -Milliseconds 100 }
    $code = $spamer.ExitCode
    $result = if ($code -eq 0) { 'no request failed' } else { "the spamer ended with exit code $code" }
    Write-Host "Summary: target$Target was away for $StartAfter of $([int] $clock.Elapsed.TotalSeconds) seconds, $result"
}
catch {
    [Console]::Error.WriteLine("run.ps1: $_")
    $code = 1
}
finally {
    Stop-Program $spamer
    if ($KeepRunning) {
        if ($servers.Count) { Write-Host "Left running: $url, processes $($servers.Values.Id)" }
        elseif ($started) { Write-Host "Left running: $url, until 'docker compose down'" }
    }
    elseif ($Local) { foreach ($process in $servers.Values) { Stop-Program $process } }
    elseif ($started) { docker compose down }
    Pop-Location
}
exit $code
